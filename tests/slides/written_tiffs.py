"""Tiled TIFF files as scanners and converters write them, with known pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

Levels = Sequence[np.ndarray]
KINDS = ("ycc-420", "ycc-422", "rgb-jpeg", "grey-jpeg", "j2k", "raw", "lzw", "deflate", "zstd")
_COMPRESSIONS = {"j2k": 33005, "raw": 1, "lzw": 5, "deflate": 8, "zstd": 50000}


def write_pyramid(
    path: Path,
    levels: Levels,
    kind: str = "ycc-420",
    tile: int = 128,
    mpp: float | None = 0.25,
    vendor: str = "generic",
    quality: int = 80,
    missing: Sequence[tuple[int, int]] = (),
    **words: object,
) -> Path:
    """Write `levels` (uint8 [h, w, 3], full size first) as one pyramid.

    kind: one of KINDS. vendor: "generic" (reduced-resolution directories), "aperio", "ome" (sub-directories) or
    "philips". missing: (level, tile number) of tiles that are left out. words: of tifffile's TiffWriter.
    """
    with tifffile.TiffWriter(path, **words) as file:
        for number, level in enumerate(levels):
            gone = {place for at, place in missing if at == number}
            file.write(**_image(level, kind, tile, quality, gone), **_directory(levels, number, vendor, mpp, tile))
    return path


def tiles_of(level: np.ndarray, tile: int) -> Iterator[np.ndarray]:
    """Its tiles, row by row; the outermost repeat the edge."""
    height, width = level.shape[:2]
    padding = ((0, -height % tile), (0, -width % tile), (0, 0))
    padded = np.pad(level, padding[: level.ndim], mode="edge")
    for y in range(0, height, tile):
        for x in range(0, width, tile):
            yield np.ascontiguousarray(padded[y : y + tile, x : x + tile])


def _image(level: np.ndarray, kind: str, tile: int, quality: int, gone: set[int]) -> dict[str, object]:
    """Compressed tiles and the tags that tell of them."""
    words: dict[str, object] = {"shape": level.shape, "dtype": np.uint8, "tile": (tile, tile), "photometric": "rgb"}
    if kind == "grey-jpeg":
        level = level[..., 1]
        words |= {"shape": level.shape, "photometric": "minisblack"}
    if "jpeg" in kind or kind.startswith("ycc"):
        streams = [_jpeg(pixels, kind, quality) for pixels in tiles_of(level, tile)]
        tables, data = streams[0][0], [stream for _, stream in streams]
        words |= {"compression": "jpeg", "jpegtables": tables}
        if kind.startswith("ycc"):
            words |= {"photometric": "ycbcr", "subsampling": (2, 2) if kind == "ycc-420" else (2, 1)}
        elif kind == "rgb-jpeg":
            words |= {"compressionargs": {"outcolorspace": "RGB"}}  # else it is labelled YCbCr
    else:
        data = [_packed(pixels, kind) for pixels in tiles_of(level, tile)]
        words |= {"compression": _COMPRESSIONS[kind], "predictor": 2 if kind in ("lzw", "zstd") else None}
    return words | {"data": iter([b"" if number in gone else part for number, part in enumerate(data)])}


def _packed(pixels: np.ndarray, kind: str) -> bytes:
    if kind == "j2k":
        return imagecodecs.jpeg2k_encode(pixels, level=60, codecformat="j2k", reversible=False, resolutions=4)
    if kind == "raw":
        return pixels.tobytes()
    if kind == "deflate":
        return imagecodecs.zlib_encode(pixels.tobytes())
    differences = imagecodecs.delta_encode(pixels, axis=1)
    encode = imagecodecs.lzw_encode if kind == "lzw" else imagecodecs.zstd_encode
    return encode(differences.tobytes())


def _jpeg(pixels: np.ndarray, kind: str, quality: int) -> tuple[bytes, bytes]:
    """A tile as an abbreviated stream and its tables, without any marker of what its colours are."""
    if kind == "grey-jpeg":
        data = imagecodecs.jpeg8_encode(pixels, level=quality)
    else:
        ycc = kind != "rgb-jpeg"
        data = imagecodecs.jpeg8_encode(
            pixels,
            level=quality,
            colorspace="RGB",
            outcolorspace="YCBCR" if ycc else "RGB",
            subsampling={"ycc-420": "420", "ycc-422": "422", "rgb-jpeg": "444"}[kind],
        )
    return abbreviate(data)


def abbreviate(data: bytes) -> tuple[bytes, bytes]:
    """Split a JPEG stream into its tables and the rest, without application markers (TIFF Technical Note 2)."""
    tables, rest, place = b"\xff\xd8", b"\xff\xd8", 2
    while data[place + 1] != 0xDA:
        marker = data[place + 1]
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in (0xDB, 0xC4):
            tables += data[place:end]
        elif not 0xE0 <= marker <= 0xEF:
            rest += data[place:end]
        place = end
    return tables + b"\xff\xd9", rest + data[place:]


def _directory(levels: Levels, number: int, vendor: str, mpp: float | None, tile: int) -> dict[str, object]:
    """Tags that say what a level is and how large its pixels are."""
    height, width = levels[0].shape[:2]
    words: dict[str, object] = {"metadata": None}
    if vendor == "aperio":
        text = f"Aperio Image Library v11.2.1 \r\n{width}x{height} ({tile}x{tile})" + (" -> " if number else "")
        return words | {"description": text + "|AppMag = 40" + (f"|MPP = {mpp}" if mpp is not None else "")}
    if vendor == "philips":
        words |= {"software": "Philips DP v1.0", "subfiletype": int(number > 0)}
        return words | ({} if number else {"description": _philips_text(levels, mpp)})
    if mpp is not None:
        words |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": 3}
    if vendor == "ome":
        words |= {"subifds": len(levels) - 1} if number == 0 else {"subfiletype": 1}
        return words | ({} if number else {"description": _ome_text(width, height, mpp)})
    return words | {"subfiletype": int(number > 0)}


def _ome_text(width: int, height: int, mpp: float | None) -> str:
    physical = "" if mpp is None else f' PhysicalSizeX="{mpp}" PhysicalSizeY="{mpp}"'
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{width}" '
        f'SizeY="{height}" SizeC="3" SizeZ="1" SizeT="1" Interleaved="true"{physical}>'
        '<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    )


def _philips_text(levels: Levels, mpp: float | None) -> str:
    spacing = (mpp or 0.0) / 1000

    def level(number: int) -> str:
        size = f"&quot;{spacing * 2**number}&quot; &quot;{spacing * 2**number}&quot;"
        return (
            '<DataObject ObjectType="PixelDataRepresentation">'
            f'<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">{size}'
            f'</Attribute><Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER" Group="0x1001" Element="0x8B02" '
            f'PMSVR="IUInt16">{number}</Attribute></DataObject>'
        )

    own = f"&quot;{spacing}&quot; &quot;{spacing}&quot;"
    return (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray"><Array>'
        '<DataObject ObjectType="DPScannedImage">'
        f'<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">{own}</Attribute>'
        '<Attribute Name="PIM_DP_IMAGE_TYPE" Group="0x301D" Element="0x1004" PMSVR="IString">WSI</Attribute>'
        '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" Element="0x8B01" '
        'PMSVR="IDataObjectArray"><Array>' + "".join(level(number) for number in range(len(levels))) + "</Array>"
        "</Attribute></DataObject></Array></Attribute></DataObject>"
    )
