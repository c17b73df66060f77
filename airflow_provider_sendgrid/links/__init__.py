"""Ways out of Airflow's pages, to where the export and its files can be looked at."""
