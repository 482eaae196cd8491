"""Where teachers come from: one module per source."""
