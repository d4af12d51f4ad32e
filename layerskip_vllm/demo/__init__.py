"""`make demo`: a real model, a real server, a real client."""
