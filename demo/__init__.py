"""The embedded demo: applicants made up by a program, and three tiny models that screen them."""
