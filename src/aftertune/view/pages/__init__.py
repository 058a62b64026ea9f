"""The pages of the view, one module each: ``ROUTES``, and ``NAVIGATION`` where it is in the navigation."""
