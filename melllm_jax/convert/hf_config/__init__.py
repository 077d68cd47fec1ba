"""Foreign config files: config.json and adapter_config.json, read and written."""
