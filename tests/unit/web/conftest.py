from tests.unit.web.workers import group, keyed, start, table_data

__all__ = ["group", "keyed", "start", "table_data"]
