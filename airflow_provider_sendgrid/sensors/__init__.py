"""The sensor that waits for SendGrid exports."""
