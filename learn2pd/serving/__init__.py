"""The server: requests that join and leave a running batch, behind OpenAI's interface over HTTP."""
