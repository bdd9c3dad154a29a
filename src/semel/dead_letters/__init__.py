"""Dead letters read back: records -> letters -> groups of one cause. Pure but for `reading`, which asks the brokers."""
