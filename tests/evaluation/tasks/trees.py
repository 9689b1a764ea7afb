"""Small trees in the official layouts of the public tasks: a few samples of each class and split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import tifffile
from PIL import Image
from pyarrow import parquet
from scipy import io, sparse

from eosin.evaluation.tasks import PUBLIC

UNITOPATHO = ("HP", "NORM", "TA.HG", "TA.LG", "TVA.HG", "TVA.LG")
_drawn = 0


def picture(path: Path, size: int = 8) -> Path:
    """An image file, no two of the same content."""
    global _drawn
    _drawn += 1
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(_drawn).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95) if path.suffix == ".jpg" else Image.fromarray(pixels).save(path)
    return path


def slide(path: Path) -> None:
    """A slide of 64 x 64 px at 0.25 µm/px."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((64, 64, 3), 200, dtype=np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", resolution=(4e4, 4e4), resolutionunit="CENTIMETER", tile=(64, 64))


def bach(root: Path) -> None:
    for folder, stem in (("Benign", "b"), ("InSitu", "is"), ("Invasive", "iv"), ("Normal", "n")):
        for number in (1, 50, 51, 60, 100):
            picture(root / "Photos" / folder / f"{stem}{number:03}.tif")


def bracs(root: Path) -> None:
    for place, split in enumerate(("train", "val", "test")):
        for label in ("0_N", "1_PB", "2_UDH", "3_FEA", "4_ADH", "5_DCIS", "6_IC"):
            for number in range(2):
                picture(root / split / label / f"BRACS_{280 + place}_{label[2:]}_{number}.png")


def breakhis(root: Path) -> None:
    slides = root / "histology_slides" / "breast"
    for group, kind, patients in (
        ("benign/SOB/tubular_adenoma", "B_TA", ("3411F", "15275")),
        ("benign/SOB/fibroadenoma", "B_F", ("9133", "21998CD")),
        ("benign/SOB/phyllodes_tumor", "B_PT", ("21998AB",)),
        ("malignant/SOB/mucinous_carcinoma", "M_MC", ("13413", "19979")),
        ("malignant/SOB/ductal_carcinoma", "M_DC", ("2523", "2773")),
    ):
        for patient in patients:
            for zoom in (40, 100):
                stem = f"SOB_{kind}-14-{patient}-{zoom}-001.png"
                picture(slides / group / f"SOB_{kind}_14-{patient}" / f"{zoom}X" / stem)


def crc(root: Path) -> None:
    for folder in ("NCT-CRC-HE-100K", "CRC-VAL-HE-7K"):
        for label in ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"):
            for number in range(2):
                picture(root / folder / label / f"{label}-{folder[:3]}{number}.tif")


def gleason(root: Path) -> None:
    for array in ("ZT111", "ZT76", "ZT80"):
        top = "test_patches_750/patho_1" if array == "ZT80" else "train_validation_patches_750"
        for grade in range(4):
            core = f"{array}_{grade}_A_1_1"
            picture(root / top / core / f"{core}_patch_00_class_{grade}.jpg")
    picture(root / "test_patches_750/patho_2/ZT80_0_A_1_1/ZT80_0_A_1_1_patch_00_class_3.jpg")


def mhist(root: Path) -> None:
    lines = ["Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition"]
    for number in range(8):
        name = picture(root / "images" / f"MHIST_{number}.png").name
        lines.append(f"{name},{('SSA', 'HP')[number % 2]},5,{'train' if number < 5 else 'test'}")
    (root / "annotations.csv").write_text("\n".join(lines))


def pcam(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for seed, word in enumerate(("train", "valid", "test")):
        stem = root / f"camelyonpatch_level_2_split_{word}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file["x"] = np.random.default_rng(seed).integers(0, 256, (6 - seed, 9, 9, 3), dtype=np.uint8)
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = (np.arange(6 - seed) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)


def unitopatho(root: Path) -> None:
    for split in ("train", "test"):
        lines = ["image_id,top_label,top_label_name"]
        for number, label in enumerate(UNITOPATHO):
            name = f"{split}{number}-B3-{label}.ndpi_ROI__mpp0.44_reg000_crop_sk00003_(12824,33871,1812,1812).png"
            picture(root / "800" / label / name)
            lines.append(f'"{name}",{number},{label}')
        (root / "800" / f"{split}.csv").write_text("\n".join(lines))


def tcga_tp53(root: Path) -> None:
    lines = ["file,slide,label"]
    for number in range(20):
        barcode = f"TCGA-A{number % 4}-{1000 + number}-01Z-00-DX1"
        file = picture(root / "tiles" / f"{number}.png").relative_to(root)
        lines.append(f"{file},{barcode},{('wild_type', 'mutated')[number % 2]}")
    (root / "tiles.csv").write_text("\n".join(lines))


def consep(root: Path) -> None:
    for folder, stem, count in (("Train", "train", 2), ("Test", "test", 1)):
        for number in range(count):
            picture(root / folder / "Images" / f"{stem}_{number + 1}.png")
            (root / folder / "Labels").mkdir(exist_ok=True)
            types = np.arange(64, dtype=np.float64).reshape(8, 8) % 8
            io.savemat(root / folder / "Labels" / f"{stem}_{number + 1}.mat", {"type_map": types})


def monusac(root: Path) -> None:
    for folder in ("MoNuSAC_images_and_annotations", "MoNuSAC Testing Data and Annotations"):
        for patient in ("TCGA-55-1594-01Z-00-DX1", "TCGA-2Z-A9JG-01Z-00-DX1")[folder.startswith("MoNuSAC T") :][:1]:
            image = picture(root / folder / patient / f"{patient}_1.tif", 12)
            regions = {"Epithelial": (1, 1, 4, 4), "Lymphocyte": (3, 3, 6, 6), "Ambiguous": (8, 8, 10, 10)}
            layers = [
                f'<Annotation><Attributes><Attribute Name="{name}"/></Attributes><Regions><Region><Vertices>'
                + "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in ((a, b), (c, b), (c, d), (a, d)))
                + "</Vertices></Region></Regions></Annotation>"
                for name, (a, b, c, d) in regions.items()
            ]
            image.with_suffix(".xml").write_text(f"<Annotations>{''.join(layers)}</Annotations>")


def bcss(root: Path) -> None:
    (root / "masks").mkdir(parents=True)
    for site in ("A2", "BH", "OL"):
        name = f"TCGA-{site}-A0CM-DX1_xmin18562_ymin56852_MPP-0.2500.png"
        picture(root / "rgbs_colorNormalized" / name)
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 22).save(root / "masks" / name)


def camelyon16(root: Path) -> None:
    for file in ("normal/normal_001", "normal/normal_010", "tumor/tumor_002", "tumor/tumor_001"):
        slide(root / "training" / f"{file}.tif")
    for number in (1, 2):
        slide(root / "testing" / "images" / f"test_{number:03}.tif")
    (root / "testing" / "reference.csv").write_text("test_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\n")


def panda(root: Path) -> None:
    lines = [",image_id,data_provider,isup_grade,gleason_score,noise_ratio_10"]
    for number in range(24):
        slide(root / "train_images" / f"{number:032x}.tiff")
        lines.append(f"{number},{number:032x},radboud,{number % 6},0+0,1")
    slide(root / "train_images" / f"{99:032x}.tiff")
    lines.append(f"24,{99:032x},radboud,0,0+0,0")
    (root / "train_with_noisy_labels.csv").write_text("\n".join(lines))


def hest(root: Path) -> None:
    """Two patients of one slide each: dense counts of one, compressed ones of the other, spots in another order."""
    for folder in ("splits", "patches", "adata"):
        (root / folder).mkdir(parents=True)
    genes, spots = np.array(["G2", "G0", "G1"], dtype=bytes), np.array([f"s{n}" for n in range(4)], dtype=bytes)
    (root / "var_50genes.json").write_text('{"genes": ["G0", "G1"]}')
    for number, sample in enumerate(("TENX1", "TENX2")):
        counts = np.arange(12).reshape(4, 3) * (number + 1)
        with h5py.File(root / "patches" / f"{sample}.h5", "w") as file:
            file["img"] = np.random.default_rng(number).integers(0, 256, (3, 9, 9, 3), dtype=np.uint8)
            file["barcode"] = spots[[3, 0, 1]].reshape(-1, 1)
        with h5py.File(root / "adata" / f"{sample}.h5ad", "w") as file:
            for key, words in (("obs", spots), ("var", genes)):
                file[f"{key}/_index"] = words
                file[key].attrs["_index"] = "_index"
            if number == 0:
                file["X"] = counts.astype(np.float32)
            else:
                packed = sparse.csr_matrix(counts)
                file["X/data"], file["X/indices"], file["X/indptr"] = packed.data, packed.indices, packed.indptr
                file["X"].attrs["encoding-type"] = "csr_matrix"
        row = f"sample_id,patches_path,expr_path\n{sample},patches/{sample}.h5,adata/{sample}.h5ad\n"
        (root / "splits" / f"test_{number}.csv").write_text(row)


def pathorob(root: Path, classes: tuple[str, ...], sites: tuple[str, ...]) -> None:
    (root / "data").mkdir(parents=True)
    pictures = [picture(root.parent / "scratch" / f"{n}.png").read_bytes() for n in range(len(classes) * len(sites))]
    rows = [
        {
            "image": {"bytes": pictures[i * len(sites) + j], "path": None},
            "slide_id": f"slide{i}{j}",
            "patch_id": str(i),
            "biological_class": label,
            "medical_center": site,
        }
        for i, label in enumerate(classes)
        for j, site in enumerate(sites)
    ]
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, root / "data" / "train-00000-of-00001.parquet", row_group_size=3)
    listed = "".join(f"ID,{row['slide_id']},{row['patch_id']}\n" for row in rows[:-1])
    (root / "tcga_4x4.csv").write_text(f"subset,slide_id,patch_id\n{listed}")


def _centres(name: str, sites: tuple[str, ...]) -> Callable[[Path], None]:
    return lambda root: pathorob(root, PUBLIC[f"pathorob-{name}"].classes, sites)


TREES: dict[str, tuple[str, Callable[[Path], None], dict[str, int]]] = {
    "bach": ("ICIAR2018_BACH_Challenge", bach, {"train": 10, "val": 10}),
    "bracs": ("BRACS_RoI/latest_version", bracs, {"train": 14, "val": 14, "test": 14}),
    "breakhis": ("BreaKHis_v1", breakhis, {"train": 4, "val": 4}),
    "crc": ("crc", crc, {"train": 18, "val": 18}),
    "gleason": ("arvaniti_gleason_patches", gleason, {"train": 4, "val": 4, "test": 4}),
    "mhist": ("MHIST", mhist, {"train": 5, "test": 3}),
    "pcam": ("patch_camelyon", pcam, {"train": 6, "val": 5, "test": 4}),
    "pcam-10shot": ("pcam", pcam, {"train": 6, "val": 5, "test": 4}),
    "unitopatho": ("unitopatho", unitopatho, {"train": 6, "test": 6}),
    "tcga-tp53": ("tcga_tp53", tcga_tp53, {"train": 17, "val": 2, "test": 1}),
    "consep": ("CoNSeP", consep, {"train": 2, "test": 1}),
    "monusac": ("MoNuSAC", monusac, {"train": 1, "test": 1}),
    "bcss": ("BCSS", bcss, {"train": 1, "val": 1, "test": 1}),
    "camelyon16": ("camelyon16", camelyon16, {"train": 2, "val": 2, "test": 2}),
    "camelyon16-small": ("CAMELYON16", camelyon16, {"train": 2, "val": 2, "test": 2}),
    "panda": ("prostate-cancer-grade-assessment", panda, {"train": 12, "val": 6, "test": 6}),
    "panda-small": ("panda", panda, {"train": 6, "val": 6, "test": 6}),
    **{
        f"hest-{organ.lower().replace('_', '-')}": (f"hest-bench/{organ}", hest, {"samples": 6})
        for organ in ("IDC", "PRAD", "PAAD", "SKCM", "COAD", "READ", "CCRCC", "LUNG", "LYMPH_IDC")
    },
    "pathorob-camelyon": ("PathoROB-camelyon", _centres("camelyon", ("RUMC", "UMCU", "CWZ")), {"train": 4, "test": 2}),
    "pathorob-tcga": ("PathoROB-tcga", _centres("tcga", ("Asterand", "Cureline")), {"train": 4, "test": 3}),
    "pathorob-tolkach": (
        "pathorob/tolkach_esca",
        _centres("tolkach", ("VALSET2_WNS", "OTHER")),
        {"train": 6, "test": 6},
    ),
}
"""By task: a folder it goes by, what writes the tree, samples of each split in it."""
