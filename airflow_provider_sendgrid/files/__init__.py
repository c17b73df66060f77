"""The bytes of one exported file: ranges, gzip and rows; knows neither the API nor clouds."""
