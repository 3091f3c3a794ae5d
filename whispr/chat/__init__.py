"""`whispr chat`: a terminal client that signs up or in and talks to a person, live."""
