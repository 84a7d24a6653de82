"""From result folders to tables and figure_style."""
