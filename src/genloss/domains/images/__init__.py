"""Images: small pictures, and diffusion models of them."""
