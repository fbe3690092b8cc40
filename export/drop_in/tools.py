"""The tools, a literal for each; what they want was read in their code.

A new tool is a literal here and templates in ``templates/``.
"""

from pocketsam.errors import UsageError
from pocketsam.export.drop_in.tool import DecoderForm, EncoderForm, OneFile, Tool, TwoFiles, Weights
from pocketsam.traits import Traits

FRAME = 1024
"""Side of the frame of most tools, whatever the canvas."""
TINY = ("mobile_sam",)
"""The architecture of tools that build MobileSAM's network themselves."""

ANYLABELING = TwoFiles(
    name="anylabeling",
    title="AnyLabeling 0.4",
    encoder=EncoderForm(file="encoder.onnx", input="input_image", layout="HWC"),
    decoder=DecoderForm(file="decoder.onnx"),
    frame=FRAME,
    files={"config.yaml": "segment_anything.yaml", "README.md": "anylabeling.md"},
)
X_ANYLABELING = TwoFiles(
    name="x-anylabeling",
    title="X-AnyLabeling 4",
    encoder=EncoderForm(file="encoder.onnx", input="input_image", layout="HWC"),
    decoder=DecoderForm(file="decoder.onnx"),
    frame=FRAME,
    files={"config.yaml": "segment_anything.yaml", "README.md": "x-anylabeling.md"},
)
EDGE_SAM = TwoFiles(
    name="edge-sam",
    title="the EdgeSAM of X-AnyLabeling 4",
    encoder=EncoderForm(file="encoder.onnx", input="image", layout="NCHW", dtype="uint8"),
    decoder=DecoderForm(file="decoder.onnx", mask_side=None, adds_point=True, answers="low"),
    frame=None,
    files={"config.yaml": "edge_sam.yaml", "README.md": "edge-sam.md"},
)
REMBG = TwoFiles(
    name="rembg",
    title="rembg 2.0",
    encoder=EncoderForm(
        file="sam_vit_b_01ec64.encoder{suffix}.onnx", input="input_image", layout="HWC"
    ),
    decoder=DecoderForm(file="sam_vit_b_01ec64.decoder{suffix}.onnx"),
    frame=FRAME,
    suffixes={"fp32": "", "int8": ".quant"},
    files={"README.md": "rembg.md"},
)
OSAM = TwoFiles(
    name="osam",
    title="osam 0.8",
    encoder=EncoderForm(file="encoder.onnx", input="x"),
    decoder=DecoderForm(file="decoder.onnx"),
    frame=None,
    files={"pocketsam_osam.py": "osam_model.txt", "README.md": "osam.md"},
)
SAMEXPORTER = TwoFiles(
    name="samexporter",
    title="samexporter 0.5",
    encoder=EncoderForm(file="encoder.onnx", input="input_image", layout="HWC"),
    decoder=DecoderForm(file="decoder.onnx"),
    frame=FRAME,
    files={"README.md": "samexporter.md"},
)
CVAT = TwoFiles(
    name="cvat",
    title="CVAT's SAM plugin",
    encoder=EncoderForm(file="nuclio/encoder.onnx", input="pixel_values"),
    decoder=DecoderForm(file="decoder.onnx", adds_point=True, answers="cropped"),
    frame=FRAME,
    canvas=1024,
    files={
        "nuclio/function.yaml": "cvat.yaml",
        "nuclio/main.py": "cvat_main.txt",
        "README.md": "cvat.md",
    },
)
TRANSFORMERS_JS = TwoFiles(
    name="transformersjs",
    title="transformers.js 4",
    encoder=EncoderForm(
        file="onnx/vision_encoder{suffix}.onnx",
        input="pixel_values",
        positions="image_positional_embeddings",
    ),
    decoder=DecoderForm(
        file="onnx/prompt_encoder_mask_decoder{suffix}.onnx",
        coords=("input_points", "float[1, B, N, 2]"),
        labels=("input_labels", "int64[1, B, N]"),
        mask_side=None,
        adds_point=True,
        answers="three",
    ),
    frame=None,
    suffixes={"fp32": "", "int8": "_quantized"},
    files={
        "config.json": "transformersjs_config.json",
        "preprocessor_config.json": "transformersjs_preprocessor.json",
        "README.md": "transformersjs.md",
    },
)
OPENCV = OneFile(
    name="opencv",
    title="the EfficientSAM of OpenCV's model zoo",
    file="image_segmentation_pocketsam.onnx",
    frame=FRAME,
    suffixes={"fp32": ""},
    files={"README.md": "opencv.md"},
)
IMAGE_SEGMENTER = OneFile(
    name="image-segmenter",
    title="Apple's CoreAIImageSegmenter",
    file="pocketsam.aimodel",
    frame=None,
    suffixes={"fp32": ""},
    files={"metadata.json": "image-segmenter.json", "README.md": "image-segmenter.md"},
)
LABEL_STUDIO = Weights(
    name="label-studio",
    title="Label Studio's segment_anything_model backend",
    file="mobile_sam.pt",
    frame=None,
    suffixes={"fp32": ""},
    canvas=FRAME,
    architectures=TINY,
    files={"README.md": "label-studio.md"},
)
ISAT = Weights(
    name="isat",
    title="ISAT 1.5",
    file="mobile_sam.pt",
    frame=None,
    suffixes={"fp32": ""},
    canvas=FRAME,
    architectures=TINY,
    files={"README.md": "isat.md"},
)

TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        ANYLABELING,
        X_ANYLABELING,
        EDGE_SAM,
        REMBG,
        OSAM,
        CVAT,
        TRANSFORMERS_JS,
        SAMEXPORTER,
        OPENCV,
        IMAGE_SEGMENTER,
        LABEL_STUDIO,
        ISAT,
    )
}


def find_tool(name: str) -> Tool:
    """Returns the tool called ``name``; raises UsageError if there is none."""
    if name not in TOOLS:
        raise UsageError(f"unknown tool {name!r}; known are {', '.join(TOOLS)}")
    return TOOLS[name]


def check_tool(
    tool: Tool,
    precision: str,
    image_size: int,
    traits: Traits | None = None,
    architecture: str = "mobile_sam",
) -> None:
    """Checks that a tool can run what is asked for, before any work.

    Args:
        tool: what it is for.
        precision: of the files.
        image_size: side of the canvas.
        traits: of the network; None: SAM's.
        architecture: of the network, a key of ``sam.ARCHITECTURES``.

    Raises:
        UsageError: a precision, a canvas or a network that it does not read.
    """
    if traits not in (None, Traits()):
        raise UsageError(
            f"{tool.title} prepares pictures as SAM does, and this network wants them otherwise; leave "
            "--for out"
        )
    if tool.architectures is not None and architecture not in tool.architectures:
        raise UsageError(
            f"{tool.title} builds {' or '.join(tool.architectures)} for such a file, the checkpoint "
            f"is {architecture}; choose another checkpoint, or another tool"
        )
    if precision not in tool.suffixes:
        known = " or ".join(tool.suffixes)
        raise UsageError(f"{tool.title} does not run {precision}; choose --precision {known}")
    if tool.canvas is not None and image_size != tool.canvas:
        raise UsageError(
            f"{tool.title} reads a canvas of {tool.canvas} only, not of {image_size}; give --image-size"
            f" {tool.canvas}"
        )
