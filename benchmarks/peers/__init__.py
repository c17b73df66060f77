"""One small program for each way to copy files to S3; each gets its job as JSON, see `benchmarks.job`."""
