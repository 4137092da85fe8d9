"""The product as its users meet it: a server process, its REST API, and a job server of ours."""
