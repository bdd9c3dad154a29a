"""The balance of each account, in cents. The topic of payments is keyed by account, so each row is whole."""

from semel import Table

balances = Table("balances", key=str, value=int, default=int)
