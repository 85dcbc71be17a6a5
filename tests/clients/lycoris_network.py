"""LyCORIS put on a model, and the weights that it multiplies with there."""
import torch
from lycoris.wrapper import LycorisNetwork
from torch.overrides import TorchFunctionMode


def network_of(model, algo, targets, settings):
    """A network on the modules whose paths end in `targets`; `settings` are arguments of its modules."""
    LycorisNetwork.apply_preset({"target_module": [], "target_name": [rf".*({'|'.join(targets)})$"]})
    network = LycorisNetwork(model, network_module=algo, warn_on_unmatched=False, **settings)
    network.apply_to()
    return network


class Multiplied(TorchFunctionMode):
    """Notes what is subtracted the base's weight and bias from, and what F.linear is given."""

    def __init__(self, module):
        super().__init__()
        self.owns = {value.data_ptr(): name for name in ("weight", "bias") if (value := getattr(module, name, None)) is not None}
        self.whole, self.linear = {}, {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("sub", "__sub__") and isinstance(args[1], torch.Tensor) and args[1].data_ptr() in self.owns:
            self.whole[self.owns[args[1].data_ptr()]] = args[0].detach().clone()
        elif name == "linear":
            given = dict(zip(("input", "weight", "bias"), args)) | kwargs
            self.linear = {key: given[key].detach().clone() for key in ("weight", "bias") if given.get(key) is not None}
        return func(*args, **kwargs)


def in_use(lora):
    """The weight, and the bias where it changes, that the module multiplies with."""
    module = lora.org_module[0]
    own = getattr(module, "weight", None)
    if own is not None and own.dim() > 2:
        inputs = torch.randn(1, module.in_channels, *[12] * (own.dim() - 2))
    else:
        inputs = torch.randn(2, 3, (lora.shape if own is None else own.shape)[-1])
    with torch.no_grad(), Multiplied(module) as seen:
        lora(inputs)
    if own is None:                                         # a whole update, which takes the base's weight away
        return seen.linear
    # GLoRA multiplies with the difference alone.
    return seen.whole or {"weight": (own + lora.get_diff_weight()[0]).detach()}
