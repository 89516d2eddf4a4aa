"""Training Stable Diffusion from scratch: data, autoencoder, text encoder, U-Net, and the loop they share."""
