"""Floor 6: the headless verbs. `gptoss_tui` adds the screens; everything here works without them."""
