"""Cloud storages and folders. Knows nothing of SendGrid."""
