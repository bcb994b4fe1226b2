"""A tiny ADNI collection: its table, NIfTI files and DICOM series in the archive's folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HEADER = "Image Data ID,Subject,Group,Sex,Age,Visit,Modality,Description,Type,Acq Date,Format,Downloaded"


def write(root: Path, *, patients: int = 24, seed: int = 0, dicom: bool = True) -> None:
    """Two scans a person, the later one first in the table; a third of the people have MCI; the last person's scans are DICOM series.

    One number lacks its I, one row stands twice, one row is a PET image, one sex is X.
    """
    rng = np.random.default_rng(seed)
    lines = [",".join(f'"{name}"' for name in HEADER.split(","))]
    for k in range(patients):
        subject, group = f"{2 + k % 5:03d}_S_{295 + k:04d}", ("CN", "AD", "MCI")[k % 3]
        for visit, (code, date) in enumerate((("m12", "5/2/2007"), ("sc", "4/18/2006"))):
            number = 118000 + 2 * k + visit
            sex, age = "X" if k == 4 else "FM"[k % 2], 54 + (3 * k) % 36 + (1 - visit)
            text = str(number) if k == 1 else f"I{number}"
            what = "MPR; GradWarp; B1 Correction; N3; Scaled"
            cells = [text, subject, group, sex, str(age), code, "MRI", what, "Processed", date, "NiFTI", ""]
            lines += [",".join(f'"{cell}"' for cell in cells)] * (2 if k == 2 and visit else 1)
            place = root / "ADNI" / subject / "MPR__GradWarp__B1_Correction__N3__Scaled" / f"{date[-4:]}-04-18_08_20_30.0" / f"I{number}"
            place.mkdir(parents=True)
            volume = rng.integers(0, 900, (12, 18, 20)).astype(np.int16)
            if group == "AD":
                volume[4:8, 6:12] = 2500
            if dicom and k == patients - 1:
                _series(place, volume, f"ADNI_{subject}_MR_MPR")
            else:
                _nifti(place / f"ADNI_{subject}_MR_MPR__GradWarp__B1_Correction__N3__Scaled_Br_20081001_S13408_I{number}.nii", volume)
            if k == 0 and visit:
                lines.append(f'"I900000","{subject}","CN","F","54","sc","PET","FDG","Original","4/18/2006","DCM",""')
    (root / "ADNI1_Complete_1Yr_1.5T_1_31_2022.csv").write_text("\n".join(lines) + "\n")


def _nifti(path: Path, volume: np.ndarray) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.2, 1, 1, 1])), path)


def _series(folder: Path, volume: np.ndarray, stem: str) -> None:
    """Sagittal slices, rows from top to bottom, columns from front to back."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    for k, plane in enumerate(volume):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[stem, str(folder), str(k)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        item.SOPClassUID, item.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        item.Modality, item.InstanceNumber = "MR", k + 1
        item.ImagePositionPatient, item.ImageOrientationPatient = [float(k), 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]
        item.PixelSpacing, item.SliceThickness = [1.0, 1.0], 1.0
        item.Rows, item.Columns = plane.T.shape
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 0
        item.PixelData = np.ascontiguousarray(plane.T[::-1].astype(np.uint16)).tobytes()
        item.save_as(folder / f"{stem}_{volume.shape[0] - k:03d}.dcm", enforce_file_format=True)
