"""Valid image files of every format and its variants."""

import io
from functools import cache

import numpy as np
from PIL import Image

from da2ray.benchmark.photos import packaged_photos
from tests.fuzz.formats import ORIENTATION, interlaced_png, rle_bmp, saved, tiled_tiff


@cache
def whole_files() -> dict[str, bytes]:
    """Valid files of about 72 x 48 pixels by name. The suffix is that of the format."""
    photo = Image.open(io.BytesIO(packaged_photos()["chelsea.png"])).convert("RGB").resize((72, 48))
    grey, palette = photo.convert("L"), photo.convert("P")
    alpha = photo.convert("RGBA")
    alpha.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": [photo.rotate(90 * turn) for turn in (1, 2)]}
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    files = {
        "baseline.jpg": saved(photo, "JPEG", quality=85),
        "444.jpg": saved(photo, "JPEG", quality=95, subsampling=0),
        "progressive.jpg": saved(photo, "JPEG", progressive=True),
        "restarts.jpg": saved(photo, "JPEG", restart_marker_blocks=3),
        "cmyk.jpg": saved(photo.convert("CMYK"), "JPEG"),
        "cmyk-progressive.jpg": saved(photo.convert("CMYK"), "JPEG", progressive=True),
        "grey.jpg": saved(grey, "JPEG"),
        "rotated.jpg": saved(photo, "JPEG", exif=turned, icc_profile=bytes(300)),
        "rgb.png": saved(photo, "PNG"),
        "grey.png": saved(grey, "PNG"),
        "deep16.png": saved(deep, "PNG"),
        "palette.png": saved(palette, "PNG", transparency=3),
        "bits.png": saved(photo.convert("1"), "PNG"),
        "alpha.png": saved(alpha, "PNG"),
        "rotated.png": saved(photo, "PNG", exif=turned),
        "animated.png": saved(photo, "PNG", **frames),
        "interlaced.png": interlaced_png(photo),
        "lossy.webp": saved(photo, "WEBP", quality=80),
        "lossless.webp": saved(photo, "WEBP", lossless=True),
        "alpha.webp": saved(alpha, "WEBP", quality=80),
        "animated.webp": saved(photo, "WEBP", **frames),
        "rotated.webp": saved(photo, "WEBP", exif=turned),
        "palette.gif": saved(palette, "GIF"),
        "flat.gif": saved(palette, "GIF", interlace=0),
        "animated.gif": saved(photo, "GIF", **frames, comment=b"c" * 600),
        "rgb.bmp": saved(photo, "BMP"),
        "palette.bmp": saved(palette, "BMP"),
        "bits.bmp": saved(photo.convert("1"), "BMP"),
        "alpha.bmp": saved(alpha, "BMP"),
        "rle.bmp": rle_bmp(),
        "raw.tif": saved(photo, "TIFF"),
        "deep16.tif": saved(deep, "TIFF"),
        "alpha.tif": saved(alpha, "TIFF"),
        "cmyk.tif": saved(photo.convert("CMYK"), "TIFF"),
        "fax.tif": saved(photo.convert("1"), "TIFF", compression="group4"),
        "pages.tif": saved(photo, "TIFF", compression="tiff_lzw", **frames),
        "rotated.tif": saved(photo, "TIFF", exif=turned),
        "tiles.tif": tiled_tiff(64, 48, 16, 16, np.arange(12 * 16 * 16 * 3, dtype=np.uint8).tobytes()),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        files[f"{compression.removeprefix('tiff_')}.tif"] = saved(photo, "TIFF", compression=compression)
    return files
