"""Where real input comes from: events, their redeliveries, and the truth to hold a run against.

Nothing here knows semel, so that what is computed here can judge it.
"""
