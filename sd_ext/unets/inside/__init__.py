"""Tools that features use to change a U-Net.

host        what a feature may use of its model                     steps       which step of a run a call belongs to
views       a U-Net's blocks by depth, and shallow copies of it     levels      its resolutions
hooks       PyTorch hooks of one model, values of one thread        sharing     copies that share weights
same_call   whether two calls have the same conditions              branches    the halves of a batch with guidance
shrinking   blocks at a lower resolution                            token_hooks   fewer tokens around attention layers
merging     merging of tokens                                       tiling      windows of tokens
blur        Gaussian blur                                           say         messages that are logged once
told        what a pipeline says about a call
"""
