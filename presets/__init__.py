"""Named starting points: each TOML file is a partial Settings."""
