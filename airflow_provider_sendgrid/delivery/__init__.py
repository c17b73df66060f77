"""One export delivered: every file stored, then the manifest; knows neither Airflow nor a particular cloud.

The modules, in the order in which they are best read:

- `export`: the steps of a delivery; `checks` come before the first download, `row_check` after the last, and `cleanup`
  at the end.
- `queue`: when each file is transferred, and in which thread.
- `file`: one file from its first byte to the published object. `lookup` finds it if it is stored already, `first_bytes`
  decides how it is stored, `verification` decompresses and counts it, `uploads` opens and aborts its upload.
- `publication`: how the manifest is replaced while other runs deliver to the same prefix.
- What is stored beside the files: `manifest`, `receipts`, `order`; their names in `object_names`.
- Values: `options`, `stored_file`; `progress` for the log.
"""
