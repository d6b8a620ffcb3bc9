"""What people see: terminal pictures here, HTML reports later."""
