"""Scores of batches of images, references to compare them with, the patches of one image, and fit to a text.

scores.py           scoring a batch
answers.py          what encoders said of pictures before
modes.py            how images are seen and scored, also beside a reference
rarity.py           images by score or by novelty, with shares of a reference
floor.py            the least quality that an image must have
choice.py           which images are kept
ranked.py           ranked images as captions, CSV and JSON
spreadsheet.py      tables as CSV
by_eye.py           which images are kept by whoever looks at them
along.py            latents and masks that go along with images
groups.py           groups of images that look alike
reference.py        making references, and what may be compared with them
novelty.py          distances to a reference, and among its pictures
comparison.py       images beside a reference: rarer than how many, novelty, text
picture_folder.py   the pictures in a folder of the host
folder_scores.py    those pictures scored, each once from run to run
folder_table.py     what is known of them, as text; the rarest
prompt_pictures.py  what a prompt draws without guidance
reference_files.py  references in models/jepa_references
number_lists.py     lists of numbers as a user writes them
strengths.py        strengths as a user writes them
rarity_map.py       patch scores at every pixel
rarity_mask.py      patch scores on a scale, and masks made of them
mask_filters.py     masks grown and blurred; local contrast
prompt_fit.py       how well images fit a text
"""
