"""One small program for each way to bring files to S3; each is told its job as JSON, see `benchmarks.job`."""
