"""The actor kernel: mailboxes, futures, dispatcher, failures, death watch, timers."""
