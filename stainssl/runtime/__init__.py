"""Devices, threads, time limits and progress of a job."""
