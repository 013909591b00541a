"""The hessian command."""
