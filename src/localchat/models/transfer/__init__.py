"""Bytes on their way from one web address to a verified file: requests, ranges, the partial and its journal."""
