"""Who answers: one engine, engines as Ray actors, Ray Data, endpoints."""
