"""The page that opens slides with what the models saw on them."""
