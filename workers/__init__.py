"""Acts: claim, fetch, dispatch, settle."""
