"""Virtual MTAs: from which addresses an organization's mail leaves, and how much of it."""
