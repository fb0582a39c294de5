"""One model behind HTTP: a service for programs, and jobs and a page for people."""
