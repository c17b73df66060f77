"""The hook for SendGrid's API."""
