"""What features reach into a U-Net with.

host        what a feature may ask of the model that has it         steps       which step of a run a call is
views       a U-Net's blocks by depth, and shallow copies of it     levels      its resolutions
hooks       PyTorch hooks that belong to one model and thread       sharing     copies that share weights
same_call   whether a call's conditions are those of another call   branches    halves of a batch with guidance
shrinking   blocks at a lower resolution                            token_hooks   tokens around attention layers
merging     merging of tokens                                       tiling      windows of tokens
blur        Gaussian blur                                           say         a message, once
"""
