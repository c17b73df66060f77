"""Tasks that wait for SendGrid."""
