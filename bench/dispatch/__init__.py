"""The dispatch policy on public instances of the Meal Delivery Routing Problem, and the solver beside bare scipy."""
