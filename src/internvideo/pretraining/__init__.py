"""The paper's section 3: masked, multimodal, supervised, interaction."""
