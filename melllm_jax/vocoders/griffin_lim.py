"""stand-in until merged"""
import numpy as np
def griffin_lim(mel, cfg):
    return np.tile(np.float32(mel.mean(1,keepdims=True))*0.001,(1,cfg.hop)).ravel().astype(np.float32)
