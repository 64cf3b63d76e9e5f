"""How much of the residual stream a code keeps, and at what price."""
