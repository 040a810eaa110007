"""The Ray shell: performs the core's commands and turns what happens into events. Ray is imported only below here."""
