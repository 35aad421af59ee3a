"""The file formats of tables: each module turns one file into Arrow batches, row by row as they are in the file."""
