"""A tiny COVID-CT-MD as its archive unpacks: three folders of patients, each a DICOM series, and the clinical table.

File names do not follow the slices' order; the third patient's sex is O; a folder has no row, and a row no folder.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

CLASSES = (("COVID-19", "COVID-19 Cases", "P"), ("CAP", "Cap Cases", "cap"), ("Normal", "Normal Cases", "normal"))
HEADER = (
    ",Diagnosis,Folder,Patient Gender,Patient Age,Slice Thickness,Slices,XRayTubeCurrent,KVP,Exposure Time,Study Date,"
    "Date of Last Calibration,Distance Source to Detector,Distance Source to Patient,Rows,Columns,Spiral Pitch Factor"
)


def write(root: Path, *, patients: int = 24, seed: int = 0, slices: int = 4, clinical: bool = True) -> None:
    rng = np.random.default_rng(seed)
    lines = [HEADER]
    for k in range(patients):
        diagnosis, folder, prefix = CLASSES[k % 3]
        name = f"{prefix}{k // 3 + 1:03d}"
        sex, age = "O" if k == 2 else "FM"[k % 2], f"{20 + 3 * k:03d}Y"
        if k != 5:
            lines.append(f"{k},{diagnosis},{name},{sex},{age},2.0,{slices},150,110,600,,20200101,1040,570,32,32,1.0")
        _series(root / folder / name, diagnosis == "COVID-19", slices, sex, age, rng)
    lines.append(f"{patients},Normal,normal099,F,050Y,2.0,{slices},150,110,600,,20200101,1040,570,32,32,1.0")
    if clinical:
        (root / "Clinical-data.csv").write_text("\n".join(lines) + "\n")
    (root / "Index.csv").write_text("Label Index,Diagnosis,Relative Path,Folder/ID\n0,COVID-19,./COVID-19/,P001\n55,CAP,./CAP/,cap001\n")
    np.save(root / "Slice-level-labels.npy", np.zeros((2, slices), np.uint8))


def _series(folder: Path, covid: bool, slices: int, sex: str, age: str, rng: np.random.Generator) -> None:
    """Slice k is at -800 HU + 10 k, brighter at the bottom with COVID-19; its file's name runs the other way round."""
    folder.mkdir(parents=True)
    series = f"1.2.3.{zlib.crc32(folder.name.encode())}"
    for k in range(slices):
        hounsfield = -800 + 10 * k + rng.integers(-40, 40, (32, 32))
        if covid:
            hounsfield[16:] += 600
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"{series}.{k + 1}"
        data.SeriesInstanceUID, data.Modality, data.PatientSex, data.PatientAge = series, "CT", sex, age
        data.InstanceNumber, data.SliceLocation = slices - k, f"{2.0 * k:.1f}"
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 2 * k], [1, 0, 0, 0, 1, 0]
        data.Rows = data.Columns = 32
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.WindowCenter, data.WindowWidth = 40, 400
        data.PixelData = (hounsfield + 1024).astype("<u2").tobytes()
        data["PixelData"].VR = "OW"
        data.save_as(folder / f"98C14734-ASSH_{slices - k}.dcm", enforce_file_format=True)
