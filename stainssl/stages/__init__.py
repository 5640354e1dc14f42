"""One module a verb: the only place where config and paths meet the libraries."""
