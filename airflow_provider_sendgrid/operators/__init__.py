"""Tasks that ask SendGrid for something."""
