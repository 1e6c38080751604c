"""What all tests share."""

pytest_plugins = ["aiolibkv.testing.plugin", "pytester"]
